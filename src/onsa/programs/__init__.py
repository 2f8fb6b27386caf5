"""Programs: what a person does, as functions over recipes and runs."""

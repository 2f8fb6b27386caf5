"""Tasks: what an example means, what is predicted, how it is scored."""

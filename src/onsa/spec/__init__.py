"""What a run is: components, sections, the recipe, messages and errors. Imports no torch."""

"""What a run proved: intervals, curves, the document of a run's results, and the report and model card made from it."""

"""A plan as batches; steps, saving, resuming."""

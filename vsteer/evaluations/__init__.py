"""What a model is asked and how its answers become rows: one class for each kind of evaluation."""

"""What a model is asked and how its answers become rows: one file for each kind of evaluation."""

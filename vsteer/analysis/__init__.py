"""Statistics and fits that SQL can't do: numbers in, numbers out."""

"""What can be said of a vector before it is swept: tables, comparisons, and pictures."""

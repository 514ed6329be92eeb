"""What is known about a vector before it is swept: tables, comparisons, and pictures."""

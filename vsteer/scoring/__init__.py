"""What is scored of stored texts: plain scorers, a judge, and perplexity. Nothing is generated."""

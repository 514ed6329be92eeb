"""What is asked of a model and how an answer is scored. Pure: no engine, no files, no grid."""

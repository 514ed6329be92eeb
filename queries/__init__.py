"""The SQL that answers what papers ask, one question a file. `vsteer sql --list` lists them."""

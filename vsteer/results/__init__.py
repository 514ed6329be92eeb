"""What comes out of a run through DuckDB: tables and views, the queries over them, files of statistics."""

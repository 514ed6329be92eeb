"""DuckDB out: a run's folder as tables and views, the queries over them, and the files of statistics."""

"""Many engines as one, on Ray: one actor an engine, work dealt to those that are ready, whatever dies."""

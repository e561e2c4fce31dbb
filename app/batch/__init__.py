"""Questions about many videos at once: read from a file, answered in one pass over each video, written line by line."""

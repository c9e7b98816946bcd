"""People in groups that share bright colors, before bright walls."""

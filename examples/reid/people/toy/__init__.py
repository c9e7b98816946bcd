"""People in groups that share bright colours, before bright walls."""

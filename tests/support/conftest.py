collect_ignore_glob = ["*.py"]  # helpers hold no tests

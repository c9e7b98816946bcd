collect_ignore = ["user_script.py"]  # is to be read, not run: it has mistakes

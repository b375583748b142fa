"""What is a law of students' measurements only is no test of the project."""

collect_ignore = ["test_measured.py"]

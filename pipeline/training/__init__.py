"""What trainings show: the page of one, and the ladder of all methods."""

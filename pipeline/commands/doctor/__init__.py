"""The command `imgindex doctor`: what a build would find here."""

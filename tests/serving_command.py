"""The command with the quick engine `quarters`. It loads no Beam, unlike `quick_command`."""

from fake_engine import register_quarters

from imgindex import cli

if __name__ == "__main__":
    register_quarters()
    cli.run()

"""`gvm-studio`: a local web page for creators. The server loads no torch; one process beside it composes."""

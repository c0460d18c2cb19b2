"""What the command line needs beyond parsing: options → messages, answers → text, JSON and files."""

"""The options of commands: declared once, turned into the values that commands are written for."""

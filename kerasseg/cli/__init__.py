"""The command lines: parse, wire, print. The only room that prints and knows exit codes."""

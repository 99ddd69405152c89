"""The commands of the command line, by what they are about; `cutaway.cli` puts them together."""

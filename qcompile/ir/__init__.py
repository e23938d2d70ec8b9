"""The vocabulary of qcompile: types and acts on graphs that everything else is written in."""

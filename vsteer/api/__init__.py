"""What a notebook or a script uses of vsteer. `import vsteer` hands it out, each name when it is used."""

"""Small real models and their data; zoo.toml says what each file is and where it comes from."""

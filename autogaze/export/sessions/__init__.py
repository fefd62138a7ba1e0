"""Running an exported file: one module for each runtime, imported when a file is opened with it."""

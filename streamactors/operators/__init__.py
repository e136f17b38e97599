"""What users write (`base`), and how each kind of step runs over batches (`stateless`, `keyed`, `sink`)."""

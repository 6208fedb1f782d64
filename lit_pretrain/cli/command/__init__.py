"""What the verbs share: how they are declared, parsed and loaded."""

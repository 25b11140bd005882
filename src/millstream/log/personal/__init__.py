"""Personal data in the log: keys, sealing and unsealing, and how a subject is forgotten."""

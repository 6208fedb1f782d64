"""Personal data with a recognisable form: addresses, numbers of people, and secrets."""

"""Personal data with a recognisable form, taken out of the text: addresses, numbers of people,
and secrets.
"""

"""TRIPLES: a format of chat rows in a file outside lit_pretrain."""

from lit_pretrain.data.chat.formats import RowFormat

TRIPLES = RowFormat(fields={"prompt": "ask", "completion": "reply.text", "system": "setting"})

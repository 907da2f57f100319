"""compile: a model's forward pass and gradient, captured once, replayed in reused memory.

`capture` writes down the ops of an eager forward pass, `fusion` joins some of them, `builder` and `lowerings`
turn them into calls on slots, `program` gives slots memory and runs the calls, `model` is what users see.
"""

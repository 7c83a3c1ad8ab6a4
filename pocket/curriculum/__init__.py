"""What the pocket models learn from: endless examples drawn from the world's samplers, in streams of their own.

`queries` draws retrieval queries with all that is known about them; `teacher` turns them into the pocket prompt set's tasks;
`base` teaches general skills in another wording, as a base model before TRACE has them.
"""

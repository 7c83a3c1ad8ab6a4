"""The lessons of the pocket models: endless examples drawn from the world's samplers, with their own seeds.

`query_mix` draws retrieval queries with everything known about them; `teacher_tasks` turns them into the pocket prompt set's
tasks; `base_skills`, `closed_book` and `think_aloud` teach the base general skills in another wording.
"""

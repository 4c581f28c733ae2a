"""The dashboard: a page that shows the queue, the runs, the spend and the workers, and acts on them.

`app` assembles routes and guards; `access` decides who may ask; `board` and `reads` ask the database, at most once a
second for all open pages; `pages` and `actions` answer requests; `charts`, `results` and `words` turn rows into what
the templates show; `server` serves it all.
"""

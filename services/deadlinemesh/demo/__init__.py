"""`dmesh demo`: an incident of three tenants, first without the mesh and then with it.

play.py    plays both acts
scenes.py  the tenants' runs, and the provider that turns slow
naive.py   an agent platform as it is commonly written
lanes.py   draws each run's time as a lane on a common axis
"""

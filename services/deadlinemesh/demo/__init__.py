"""`dmesh demo`: an incident of three tenants, naive and then meshed.

play.py    both acts
scenes.py  the tenants' runs, and the provider that turns slow
naive.py   an agent platform as it is commonly written
lanes.py   each run's time as a lane on a common axis
"""

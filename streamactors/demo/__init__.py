"""The main job, as `streamactors demo` runs it: an event log, running totals per customer, a SIGKILL in the middle,
and a count of what came out. Needs nothing but the package.
"""

"""`pyvmm top`: the running machines, live.

x-status, X_TRACE --> watcher (a thread for each machine) --> samples (figures and rates)
                                                               |
keyboard --> keys ------------------------------------------> view (what the screen shows), command (puts together)
                                          layout (what has room) --^
"""

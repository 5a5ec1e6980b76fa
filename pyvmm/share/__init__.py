"""A folder of the host in the guest: a FUSE server on the host, whose requests come over a vsock connection.

    guest's kernel -- /dev/fuse -- `session fuse` -- vsock -- machine -- socket -- this server, a process -- folder

The guest's part only passes bytes on: FUSE's requests and replies are the protocol. The server was forked before the
machine was confined, and confines itself: Landlock leaves it the folder alone. That is the second wall: it looks each
name up from the folder's descriptor, follows no link, and takes no name with a slash.

Reading order: protocol (FUSE's bytes), folder (names and files), operations (requests), server (connections,
process).
"""

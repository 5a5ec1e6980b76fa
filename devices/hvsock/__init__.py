"""Hyper-V sockets: stream connections between guest and host, AF_VSOCK in Linux. Each is a VMBus channel of its own.

    guest connects    TL_CONNECT_REQUEST ->  `sockets` dials the host's end, then offers a channel; OPEN: connected
    host connects     an offer with the port that the guest listens on; OPEN: connected, none in time: refused

    host's program -- Unix socket -- SocketEnd (`socket_end`) -- Connection -- ring, packets (`protocol`) -- guest

Flow control is the ring's and the socket's: while one is full the other is not read, so a connection keeps one batch
of packets at most. A packet without data ends one direction (FIN). When both have ended, or one end is lost, the host
rescinds the channel: a guest frees a closed socket only then.

Reading order: protocol, connection, socket_end, sockets.
"""

"""What a network card is connected to on the host: links. The chapter before `devices.netvsc`, which uses them.

* `spec`      `--net user,hostfwd=tcp::2222-:22`: what the user asks for
* `link`      the interface of a link, and the link that is connected to nothing
* `stream`    frames over a Unix stream socket, as QEMU's `-netdev stream` and passt send them
* `passt`     `user`: passt, which turns the guest's connections into sockets of its own, without privileges
* `passt_link`   the link to it, which keeps the end of a connection until passt has its data
* `tap`       `tap=NAME`: a tap device of the host, for a bridge or routing
* `checksum`  the Internet checksum

Links are opened before a machine's process is confined, which it must stay able to use but not to make.
"""

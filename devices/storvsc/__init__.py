"""hv_storvsc's device: disks on a synthetic SCSI controller. Assumes the chapter on VMBus (`pyvmm.vmbus`).

A SCSI controller on Hyper-V is a channel on which SCSI commands travel in packets, with the guest's memory attached:

    guest                                                        host
      BEGIN_INITIALIZATION, QUERY_PROTOCOL_VERSION 6.2  -->        in-band packets, each completed
      QUERY_PROPERTIES, END_INITIALIZATION              -->
                                                        <--  "1 sub-channel at most, 1 MiB a command"
      CREATE_SUB_CHANNELS 1                             -->  OFFER of sub-channel 1
      EXECUTE_SRB: INQUIRY to 16 targets, REPORT LUNS   -->        the scan: finds disks
      EXECUTE_SRB: READ(10), pages 5, 9, 6              -->        GPA_DIRECT packet
                                                        <--  COMPLETION: moved 12288 bytes; or sense data
      (the host has a new disk)                         <--  ENUMERATE_BUS, and the guest scans again

`protocol` has the packets, `scsi` the commands in them, `disk` a disk's state. `controller` is the VmbusDevice: it
answers what needs no file at once. `quick` reads and writes the image (`pyvmm.disks`) straight from and to guest
memory where the host's page cache holds the data; the rest goes to `workers`, threads that may wait for the host's
disk. `request` is one such piece of work; `hotplug` adds and removes disks.

What holds whatever the guest does:

* A guest has at most `Controller.OWN_COMPLETIONS` commands outstanding on a channel; the ring is read no further
  then.
* A channel's end does not wait for the host's disks, and yet no READ stores anything after UNLOAD_RESPONSE, and no
  late WRITE overtakes one of the next driver: `request`, `Disk.stale`.
* Each command is answered: Linux waits without end, and a controller that is rescinded with one outstanding hangs.
"""

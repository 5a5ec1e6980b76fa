"""The SCSI commands of a disk: from a CDB (command descriptor block) to an answer, or to work for its file.

Source: T10 SPC-5 (commands of all devices), SBC-4 (of disks); what Linux sends: drivers/scsi/{scsi_scan,sd,scsi}.c.

    cdb, data --> commands.execute(disk, ...) --> Reply(bytes)          answered at once: INQUIRY, READ CAPACITY ...
                                              --> Read, Write, ... (work) --> a thread that reads or writes the file
                                              --> raises CheckCondition(sense)

No I/O here. Numbers in SCSI are big-endian, unlike those in the packets around them. Reading order: sense, work,
inquiry, modes, commands.
"""

"""Explains numbers, names and bytes: what they are, where they come from, which of our code handles them.

    word --lookup--> entries of the catalogue --cli--> text or JSON
                       enumerations    members of IntEnums, with the text beside them
                       machine_parts   trace events, devices, QMP, exit statuses
                       declared        reads docstrings, comments and lines of the source
                       references      finds the functions that use a declaration

Nothing is stored here: an entry is made from the declaration that the machine itself uses.
"""

module github.com/livinguniverse/stoker/services/activity

go 1.26.0
